"""Export of a trained model for other programs: ONNX, open_clip, preprocessing, tokenizer and model card."""
