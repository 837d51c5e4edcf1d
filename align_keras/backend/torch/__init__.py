"""The functions that `align_keras.backend` offers, on torch."""
