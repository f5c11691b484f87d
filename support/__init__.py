"""The ground floor: what every program needs and no lesson is about. It imports no numbered file."""
