"""The local dashboard: records -> runs and points (gather) -> charts -> one HTML file (page) and figures on disk."""
