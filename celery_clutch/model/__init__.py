"""What a workflow is: plans, their JSON and drawings, states, and what is told of them; pure."""
