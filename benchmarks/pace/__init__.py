"""Parts of the benchmarks that measure how fast trainings are: photos, the trainings, what they are compared with."""
