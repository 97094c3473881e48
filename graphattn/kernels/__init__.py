"""How fast it runs: one algorithm a file; `graphattn.plan` holds the table that picks one."""
