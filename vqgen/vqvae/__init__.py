"Pictures into codes, and codes into pictures: encoder, quantizer, decoder."
