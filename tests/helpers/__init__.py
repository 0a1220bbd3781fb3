"""Code that several tests share; there is no test here."""
