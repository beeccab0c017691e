ALTER TABLE "orders" DROP CONSTRAINT "orders_reference_unique";--> statement-breakpoint
DROP INDEX "order_lines_by_sale";--> statement-breakpoint
DROP INDEX "outbox_once";--> statement-breakpoint
DROP INDEX "reservations_by_sale";--> statement-breakpoint
ALTER TABLE "order_lines" DROP COLUMN "sale_id";--> statement-breakpoint
ALTER TABLE "outbox" DROP COLUMN "id";--> statement-breakpoint
ALTER TABLE "reservations" DROP COLUMN "id";--> statement-breakpoint
ALTER TABLE "outbox" ADD CONSTRAINT "outbox_order_id_kind_pk" PRIMARY KEY("order_id","kind");--> statement-breakpoint
ALTER TABLE "reservations" ADD CONSTRAINT "reservations_sale_id_key_pk" PRIMARY KEY("sale_id","key");--> statement-breakpoint
ALTER TABLE "orders" ADD CONSTRAINT "order_of_payment" CHECK ("orders"."id" = 'ord_' || "orders"."reference");--> statement-breakpoint
CREATE INDEX "payments_with_attention" ON "payments" USING btree ("captured_at") WHERE attention is not null;
