"Captioned pictures from any source: built-in drawings, the Hugging Face Hub, files and folders."
