"""Where images come from: folders, archives, tables and data sets."""
