"""From any text to training rows: documents, tokenizer, packing, conversations, preferences, and their exact mixing."""
