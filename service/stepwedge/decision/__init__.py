"""From scores to decisions: calibration, prevalence, costs."""
