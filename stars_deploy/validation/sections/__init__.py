"""The sections of report.html: each module turns files of a bundle into what the page shows."""
