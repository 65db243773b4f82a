"""Training: the joint graph of forward and backward (`joint`), its split (`partition`), and what runs the
two halves behind torch's autograd engine (`function`). Comes after `lower`, before `loops`."""
