"""Recipe + environment + what is already done = the exact steps that will run, and why. Pure: reads no file, starts nothing."""
