"""The paper in miniature: its findings as studies over seeds, called by rules that were set beforehand."""
