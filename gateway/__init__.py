"""The control plane and the router: registers, signs, decides again, picks the node, keeps the record."""
