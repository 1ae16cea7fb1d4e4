"""What people see of a study: its pages in MLflow, pictures, tables and a report that stands alone."""
