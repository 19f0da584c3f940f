"""LightToken in its published form (Wang et al., KDD 2023)."""
