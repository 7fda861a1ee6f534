"""Writers of metrics: one file for each row of `resflax.run.metric_writer.WRITERS`."""
