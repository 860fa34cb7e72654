"""The operator's side: what is decided (pure modules) and the one module that writes (`apply`)."""
