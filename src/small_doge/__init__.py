"""SmallDoge."""
