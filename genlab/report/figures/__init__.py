"""The charts of a report: each one function, from small tables to an Altair chart."""
