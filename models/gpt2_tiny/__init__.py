"""GPT-2-like decoder with past keys and values: the next byte of English."""
