"""One self-contained HTML page from one or several run folders."""

from fedsb.report.write import write_figures as write_figures
from fedsb.report.write import write_report as write_report
