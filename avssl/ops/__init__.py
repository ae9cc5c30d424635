"""Maths and state shared by two or more losses."""
