"""The playground, `vlm-r1 play`: ask one or two models about an image on a local web page."""
