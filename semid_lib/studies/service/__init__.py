"""What a served recommender costs: cold starts part by part, and the bill of an endpoint."""
