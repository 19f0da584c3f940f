"""The local dashboard: records -> runs and points (gather) -> charts -> an HTML file (page), figures and tables."""
