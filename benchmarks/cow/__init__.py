"""How much time copy-on-write views take, beside doing the same directly and with others' overlays."""
