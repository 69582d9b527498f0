"""The first generation (arXiv 2407.16958): inner function attention, and a mixture of experts in every layer."""
