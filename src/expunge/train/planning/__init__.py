"""What a run will need, before it starts: its step carried out on shapes, its memory, its time, and what needs less."""
