"""What is here, what will be used of it, and what is wrong: for a person who sets the package up or reports a fault.

It stands below no other room and imports the others only when it looks at them, each on its own, so that a broken part is a line of the
report and not the end of it.
"""

from .examine import Examination, Problem, examine

__all__ = ["Examination", "Problem", "examine"]
