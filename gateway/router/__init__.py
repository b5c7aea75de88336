"""Which node runs an action: placement policy, eligibility, the choice, the trace."""
