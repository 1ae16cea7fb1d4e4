"""What people see in a terminal while a study is worked on: of the command that does, and of `status` elsewhere."""
