"""The networks: the dual-branch transformer, the planner, the semantic encoders, a vocoder without weights."""
