"""AlpacaEval by the alpaca_eval package, with the judge of this package."""
