"""Standing: how far an agent is trusted, as a score from 0 to 1000."""
