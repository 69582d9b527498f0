"""Pure tensor functions: a readable definition beside each fast backend."""
