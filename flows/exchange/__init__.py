"""Label issues for other annotation tools, and the decisions that come back from them. Each format is one module."""
