CREATE TABLE "admin_log" (
	"id" bigserial PRIMARY KEY NOT NULL,
	"at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	"action" text NOT NULL,
	"sale_id" text,
	"detail" jsonb NOT NULL
);
--> statement-breakpoint
CREATE TABLE "dead_letters" (
	"sale_id" text NOT NULL,
	"entry_id" text NOT NULL,
	"body" text NOT NULL,
	"error" text NOT NULL,
	"at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "dead_letters_sale_id_entry_id_pk" PRIMARY KEY("sale_id","entry_id")
);
--> statement-breakpoint
CREATE TABLE "epochs" (
	"sale_id" text PRIMARY KEY NOT NULL,
	"epoch" integer DEFAULT 0 NOT NULL,
	"run_id" text DEFAULT '' NOT NULL,
	"replication_id" text DEFAULT '' NOT NULL
);
--> statement-breakpoint
CREATE TABLE "gates" (
	"gateway" text PRIMARY KEY NOT NULL,
	"quiet" boolean DEFAULT false NOT NULL,
	"list_cursor" text
);
--> statement-breakpoint
CREATE TABLE "items" (
	"sale_id" text NOT NULL,
	"sku" text NOT NULL,
	"position" integer NOT NULL,
	"name" text NOT NULL,
	"unit_price" bigint NOT NULL,
	"granted" integer NOT NULL,
	"claimed" integer DEFAULT 0 NOT NULL,
	CONSTRAINT "items_sale_id_sku_pk" PRIMARY KEY("sale_id","sku"),
	CONSTRAINT "claimed_within_granted" CHECK ("items"."claimed" >= 0 and "items"."claimed" <= "items"."granted")
);
--> statement-breakpoint
CREATE TABLE "journal_positions" (
	"sale_id" text PRIMARY KEY NOT NULL,
	"seq" bigint DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE "order_lines" (
	"order_id" text NOT NULL,
	"sale_id" text NOT NULL,
	"sku" text NOT NULL,
	"name" text NOT NULL,
	"quantity" integer NOT NULL,
	"unit_price" bigint NOT NULL,
	CONSTRAINT "order_lines_order_id_sku_pk" PRIMARY KEY("order_id","sku")
);
--> statement-breakpoint
CREATE TABLE "orders" (
	"id" text PRIMARY KEY NOT NULL,
	"no" bigserial NOT NULL,
	"reservation_id" text NOT NULL,
	"reference" text NOT NULL,
	"sale_id" text NOT NULL,
	"customer_id" text NOT NULL,
	"status" text DEFAULT 'confirmed' NOT NULL,
	"amount" bigint NOT NULL,
	"currency" text NOT NULL,
	"gateway" text NOT NULL,
	"charge_id" text,
	"contact" jsonb NOT NULL,
	"ship_to" jsonb,
	"refund_reason" text,
	"restock" boolean,
	"confirmed_at" timestamp (3) with time zone NOT NULL,
	"recorded_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	"refunded_at" timestamp (3) with time zone,
	CONSTRAINT "orders_reservation_id_unique" UNIQUE("reservation_id"),
	CONSTRAINT "orders_reference_unique" UNIQUE("reference"),
	CONSTRAINT "order_status" CHECK (status in ('confirmed', 'refunding', 'refunded'))
);
--> statement-breakpoint
CREATE TABLE "outbox" (
	"id" bigserial PRIMARY KEY NOT NULL,
	"order_id" text NOT NULL,
	"kind" text NOT NULL,
	"sale_id" text NOT NULL,
	"language" text NOT NULL,
	"state" text DEFAULT 'queued' NOT NULL,
	"attempts" integer DEFAULT 0 NOT NULL,
	"next_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	"sent_at" timestamp (3) with time zone,
	"last_error" text
);
--> statement-breakpoint
CREATE TABLE "payments" (
	"reference" text PRIMARY KEY NOT NULL,
	"sale_id" text NOT NULL,
	"reservation_id" text NOT NULL,
	"reservation_key" text NOT NULL,
	"customer_id" text NOT NULL,
	"gateway" text NOT NULL,
	"token" text,
	"token_digest" text NOT NULL,
	"amount" bigint NOT NULL,
	"currency" text NOT NULL,
	"lines" jsonb NOT NULL,
	"contact" jsonb NOT NULL,
	"ship_to" jsonb,
	"return_url" text,
	"language" text NOT NULL,
	"state" text NOT NULL,
	"fence" integer DEFAULT 0 NOT NULL,
	"claimed" boolean DEFAULT false NOT NULL,
	"late" boolean DEFAULT false NOT NULL,
	"sends" integer DEFAULT 0 NOT NULL,
	"decline_code" text,
	"charge_id" text,
	"action_url" text,
	"attention" text,
	"queued_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	"sent_at" timestamp (3) with time zone,
	"first_sent_at" timestamp (3) with time zone,
	"action_deadline" timestamp (3) with time zone,
	"check_at" timestamp (3) with time zone,
	"captured_at" timestamp (3) with time zone,
	"ended_at" timestamp (3) with time zone,
	CONSTRAINT "payment_state" CHECK (state in ('queued', 'sending', 'action_required', 'unknown', 'captured', 'declined', 'cancelled', 'refunding', 'refunded')),
	CONSTRAINT "payment_amount" CHECK ("payments"."amount" >= 0),
	CONSTRAINT "open_payments_are_claimed" CHECK ("payments"."claimed" or "payments"."state" not in ('sending', 'action_required', 'unknown', 'captured'))
);
--> statement-breakpoint
CREATE TABLE "reservations" (
	"id" text PRIMARY KEY NOT NULL,
	"sale_id" text NOT NULL,
	"key" text NOT NULL,
	"customer_id" text NOT NULL,
	"state" text NOT NULL,
	"lines" text NOT NULL,
	"reference" text NOT NULL,
	"deadline_ms" bigint NOT NULL,
	"epoch" integer NOT NULL,
	"seq" bigint NOT NULL,
	"held_at" timestamp (3) with time zone NOT NULL,
	"changed_at" timestamp (3) with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "sales" (
	"id" text PRIMARY KEY NOT NULL,
	"no" serial NOT NULL,
	"name" text NOT NULL,
	"currency" text NOT NULL,
	"language" text,
	"opens_at" timestamp (3) with time zone NOT NULL,
	"closes_at" timestamp (3) with time zone NOT NULL,
	"hold_ms" bigint NOT NULL,
	"max_units_per_customer" integer NOT NULL,
	"gateways" jsonb NOT NULL,
	"shipping_fee" bigint NOT NULL,
	"reserving" boolean DEFAULT true NOT NULL,
	"paused_at_ms" bigint DEFAULT 0 NOT NULL,
	"shift_ms" bigint DEFAULT 0 NOT NULL,
	"version" integer DEFAULT 1 NOT NULL,
	"created_from" text NOT NULL,
	"created_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "sales_no_unique" UNIQUE("no")
);
--> statement-breakpoint
CREATE TABLE "secrets" (
	"name" text PRIMARY KEY NOT NULL,
	"value" text NOT NULL
);
--> statement-breakpoint
CREATE TABLE "stock_moves" (
	"id" text PRIMARY KEY NOT NULL,
	"sale_id" text NOT NULL,
	"sku" text NOT NULL,
	"delta" integer NOT NULL,
	"reason" text NOT NULL,
	"idempotency_key" text,
	"order_id" text,
	"customer_id" text,
	"customer_units" integer DEFAULT 0 NOT NULL,
	"state" text NOT NULL,
	"result" jsonb,
	"created_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "stock_move_state" CHECK (state in ('pending', 'granted', 'done', 'refused'))
);
--> statement-breakpoint
CREATE TABLE "stray_charges" (
	"gateway" text NOT NULL,
	"reference" text NOT NULL,
	"charge_id" text NOT NULL,
	"reservation_id" text NOT NULL,
	"amount" bigint NOT NULL,
	"currency" text NOT NULL,
	"found_at" timestamp (3) with time zone DEFAULT now() NOT NULL,
	"refunded_at" timestamp (3) with time zone,
	CONSTRAINT "stray_charges_gateway_reference_pk" PRIMARY KEY("gateway","reference")
);
--> statement-breakpoint
ALTER TABLE "epochs" ADD CONSTRAINT "epochs_sale_id_sales_id_fk" FOREIGN KEY ("sale_id") REFERENCES "public"."sales"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "items" ADD CONSTRAINT "items_sale_id_sales_id_fk" FOREIGN KEY ("sale_id") REFERENCES "public"."sales"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "journal_positions" ADD CONSTRAINT "journal_positions_sale_id_sales_id_fk" FOREIGN KEY ("sale_id") REFERENCES "public"."sales"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "order_lines" ADD CONSTRAINT "order_lines_order_id_orders_id_fk" FOREIGN KEY ("order_id") REFERENCES "public"."orders"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "outbox" ADD CONSTRAINT "outbox_order_id_orders_id_fk" FOREIGN KEY ("order_id") REFERENCES "public"."orders"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "order_lines_by_sale" ON "order_lines" USING btree ("sale_id","sku");--> statement-breakpoint
CREATE INDEX "orders_by_sale" ON "orders" USING btree ("sale_id","no");--> statement-breakpoint
CREATE INDEX "orders_by_no" ON "orders" USING btree ("no");--> statement-breakpoint
CREATE UNIQUE INDEX "outbox_once" ON "outbox" USING btree ("order_id","kind");--> statement-breakpoint
CREATE INDEX "outbox_queue" ON "outbox" USING btree ("next_at") WHERE state = 'queued';--> statement-breakpoint
CREATE INDEX "outbox_by_sale" ON "outbox" USING btree ("sale_id","state");--> statement-breakpoint
CREATE UNIQUE INDEX "payments_one_live" ON "payments" USING btree ("reservation_id") WHERE state not in ('declined', 'cancelled') and not late;--> statement-breakpoint
CREATE INDEX "payments_by_reservation" ON "payments" USING btree ("reservation_id","queued_at");--> statement-breakpoint
CREATE INDEX "payments_to_check" ON "payments" USING btree ("check_at") WHERE state in ('queued', 'sending', 'action_required', 'unknown', 'refunding');--> statement-breakpoint
CREATE INDEX "payments_captured" ON "payments" USING btree ("captured_at") WHERE state = 'captured';--> statement-breakpoint
CREATE INDEX "payments_by_sale" ON "payments" USING btree ("sale_id","state");--> statement-breakpoint
CREATE INDEX "reservations_by_sale" ON "reservations" USING btree ("sale_id");--> statement-breakpoint
CREATE UNIQUE INDEX "stock_moves_key" ON "stock_moves" USING btree ("sale_id","idempotency_key");--> statement-breakpoint
CREATE INDEX "stock_moves_open" ON "stock_moves" USING btree ("sale_id") WHERE state in ('pending', 'granted');--> statement-breakpoint
CREATE INDEX "stock_moves_by_sale" ON "stock_moves" USING btree ("sale_id","sku");