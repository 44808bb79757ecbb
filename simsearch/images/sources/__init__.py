"""Where images come from: folders, archives, tables, data sets and other machines."""
