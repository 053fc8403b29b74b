"""From a folder of images to a trained, measured GAN generator, reproducibly."""
