"How good is a picture? Accuracy of what a caption states, and distances between sets of pictures."
