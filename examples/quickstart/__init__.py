"""The quickstart: product reviews to scores and alerts."""
