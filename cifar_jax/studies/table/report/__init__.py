"""Pictures and pages made from a run's metrics; the only place that imports matplotlib."""
