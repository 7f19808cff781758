"""What tools/reproduce.py is made of: the table of experiments, their runs, results, figures."""
