"""Tables, figures and the HTML page, made from the numbers of ``analysis``."""
