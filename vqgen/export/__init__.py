"A run for other programs: ONNX, and a page that draws while you type."
