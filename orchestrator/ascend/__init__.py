"""The target: the SoC catalogue and what each toolchain parses. Tables are data files; nothing here needs a device."""
