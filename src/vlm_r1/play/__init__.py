"""The playground, `vlm-r1 play`: ask one or two models about a picture on a local web page."""
