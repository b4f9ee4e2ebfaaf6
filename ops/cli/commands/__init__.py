"""The commands of `outrider`, one file each; `doctor` and `up` have folders of their own."""
