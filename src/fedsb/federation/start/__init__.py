"""What happens before the first round: calibration, a fresh head's warm-up, bases and cores."""
