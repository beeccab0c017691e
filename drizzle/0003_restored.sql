CREATE TABLE "beats" (
	"id" integer PRIMARY KEY NOT NULL,
	"beat" bigint DEFAULT 0 NOT NULL,
	"beaten_at" timestamp (3) with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "epochs" ADD COLUMN "stopped_why" text;--> statement-breakpoint
ALTER TABLE "orders" ADD COLUMN "recovered" boolean DEFAULT false NOT NULL;--> statement-breakpoint
ALTER TABLE "stray_charges" ADD COLUMN "resolution" text;